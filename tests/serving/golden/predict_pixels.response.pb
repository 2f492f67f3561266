

labelBlateral

decisionBlateral
'
probabilities*Wœ•>Ô15?
viewpredict_pixels